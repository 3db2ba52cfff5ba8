// What changed between two texts, in words.

/** [{kind: "same" | "gone" | "new", text}], runs of words of one kind together: by their longest common subsequence. */
export function diff(before, after) {
  const [first, second] = [before, after].map((text) => text.split(/\s+/).filter(Boolean));
  const longest = Array.from({ length: first.length + 1 }, () => new Array(second.length + 1).fill(0));
  for (let i = first.length - 1; i >= 0; i--) {
    for (let j = second.length - 1; j >= 0; j--) {
      longest[i][j] =
        first[i] === second[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const runs = [];
  const put = (kind, word) => {
    const last = runs.at(-1);
    if (last?.kind === kind) {
      last.text += ` ${word}`;
    } else {
      runs.push({ kind, text: word });
    }
  };
  let [i, j] = [0, 0];
  while (i < first.length || j < second.length) {
    if (i < first.length && j < second.length && first[i] === second[j]) {
      put("same", first[i]);
      i++;
      j++;
    } else if (j === second.length || (i < first.length && longest[i + 1][j] >= longest[i][j + 1])) {
      put("gone", first[i++]);
    } else {
      put("new", second[j++]);
    }
  }
  return runs;
}
