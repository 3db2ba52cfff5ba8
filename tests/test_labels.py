"""One rule for whoever asks whether a label can be used and whether two are the same."""

import itertools

from medq_ray.labels import readable, says_same
from medq_ray.questions import describe

FREE = "Ripples all over, I would say. Overall, the quality of this image is reject."


def test_readable_is_the_form_that_is_trained_on():
    motion = describe("mri", "motion", "severe")
    assert readable("what", " B. motion ", 4) == "B"
    assert readable("what", "E", 4) is None
    assert readable("description", f" {motion}\n", 0) == motion
    assert readable("description", f"{FREE} ", 0) == FREE  # whatever it says, it ends in a verdict
    assert readable("description", "B", 0) is readable("description", "I cannot judge this image.", 0) is None


def test_the_same_findings_in_other_words_are_the_same_label():
    motion, free = describe("mri", "motion", "severe"), "Strong ghosting. Overall, the quality of the scan is reject."
    end = "Overall, the quality of this image is reject."
    different = [motion, describe("mri", "motion", "mild"), describe("ct", "blur", "severe"), describe("mri", "none", "none"),
                 describe("mri", "blur", "severe"), f"Severe blur. Mild noise. {end}", f"Mild blur. Severe noise. {end}"]  # fmt: skip
    assert says_same("description", motion, free, 0)
    for first, second in itertools.product(different, different):
        assert says_same("description", first, second, 0) == (first == second)
    assert says_same("description", "fine", "fine", 0) is False
    assert says_same("what", "B", "B. motion", 4) and not says_same("what", "no", "no", 4)


def test_of_descriptions_in_doubt_only_equal_ones_are_known_to_be_the_same():
    motion = describe("mri", "motion", "severe")
    assert says_same("description", FREE, FREE.replace(", I", ",  I"), 0) is True
    assert says_same("description", FREE, motion, 0) is says_same("description", motion, FREE, 0) is None
