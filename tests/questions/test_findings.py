"""What a description says is read where its words leave no doubt, and nowhere else."""

import pytest

from medq_ray.questions import describe, read_description
from medq_ray.questions.findings import Findings, overlap, read_findings
from medq_ray.schema import DEGRADATIONS, GRADES, MODALITIES

END = "Overall, the quality of this image is"


@pytest.mark.parametrize("modality", DEGRADATIONS)
def test_every_description_in_the_closed_form_says_the_same(modality):
    for degradation in DEGRADATIONS[modality]:
        for severity in ("mild", "severe"):
            text = describe(modality, degradation, severity)
            found = read_findings(text)
            assert found == Findings(frozenset({(degradation, severity)}), read_description(text)["grade"], modality)
            assert (found.degradations, found.severity) == ({degradation}, severity)
    clean = read_findings(describe(modality, "none", "none"))
    assert clean == Findings(frozenset(), "good", modality) and clean.severity == "none"


@pytest.mark.parametrize(("text", "degrees", "grade"), [
    ("Sharp edges. No motion, ghosting or ring artefacts.", set(), "good"),
    ("Slight ghosting and blurring.", {("blur", "mild"), ("motion", "mild")}, "usable"),
    ("There is no haze, but there are severe air bubbles.", {("air_bubble", "severe")}, "reject"),
    ("Mild blur, severe noise and motion artefacts.", {("blur", "mild"), ("noise", "severe"), ("motion", "severe")}, "reject"),
    ("It shows mild blur. Pronounced air-bubbles.", {("air_bubble", "severe"), ("blur", "mild")}, "reject"),
    ("Severe noise, in a knee.", {("noise", "severe")}, "usable"),
    ("Mild blur.", {("blur", "mild")}, "good"),
])  # fmt: skip
def test_plain_statements(text, degrees, grade):
    for end in (f"{text} {END} {grade}.", f"{text}\nThe overall quality of the scan is **{grade}**"):
        assert read_findings(end) == Findings(frozenset(degrees), grade, None)


@pytest.mark.parametrize("said", [
    "Severe motion is not visible.", "Motion is not visible and noise is absent.", "It is noise-free.", "Noise: none.",
    "There isn't any severe blur.", "Hardly any mild noise.", "Severe motion artefacts are absent.", "Low noise.",
    "The patient wears a wedding ring.", "Two-fold magnification.", "Severe motion is well visible.", "Noise is low.",
    "If there were severe motion, it would show.", "Severe motion was removed.", "Mild to severe blur.",
    "No noise, motion or haze, and the blur is there.", "Severe motion is ruled out.", "Zero severe noise.",
    "I doubt severe motion.", "Nothing suggests severe motion.", "Negative for severe motion.", "Severe motion? No.",
    "I looked for severe motion and found nothing.", "Severe noise fails to appear.", "It escaped severe motion.",
    "Severe motion was expected.", "Severe motion, however, is absent.", "Severe noise: no.", "Non-severe motion.",
    "Severe motion, which is common in MRI, is not seen here.", "Severe motion\nis absent.", "Absent: severe motion.",
    "None of the following is present: mild blur, mild noise.", "No artefacts, severe motion, mild blur.",
    "The severe lesion shows noise.", "Mild ring enhancement of the lesion.", "Mild blur. Severe blur.",
])  # fmt: skip
def test_what_is_in_doubt_is_not_read(said):
    for grade in GRADES:
        assert read_findings(f"{said} {END} {grade}.") is read_findings(f"Mild haze. {said} {END} {grade}.") is None


@pytest.mark.parametrize("text", [
    "", "B", "Severe blur.", f"{END} unknown.", f"It is bad. {END} reject.", f"No noise, no blur. {END} usable.",
    f"Severe blur. {END} good.", f"{END} reject. Severe blur.", "Although its upper half is good, it is reject.",
    "The quality of its upper half is good, that of the lower is reject.",
])  # fmt: skip
def test_without_a_verdict_at_the_end_that_fits_nothing_is_read(text):
    assert read_findings(text) is None


def test_descriptions_of_two_modalities_are_not_the_same():
    for modality in MODALITIES:
        mine, bare = read_findings(describe(modality, "blur", "mild")), read_findings(f"Mild blur. {END} usable.")
        assert mine.same(mine) and mine.same(bare) and bare.same(mine)
        for other in MODALITIES:
            theirs = read_findings(describe(other, "blur", "mild"))
            assert mine.contradicts(theirs) == (other != modality) != mine.same(theirs)
    assert read_findings(f"Mild blur, as in CT and MRI. {END} usable.").modality is None


def test_words_that_both_use():
    assert overlap("a b", "A, b!") == 1 and overlap("a b", "c") == overlap("", "") == 0
    assert overlap("a a b", "a b b") == overlap("a b b", "a a b") == pytest.approx(2 / 3)
