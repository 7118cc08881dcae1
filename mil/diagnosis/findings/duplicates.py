"""Finding: is one slide there under two ids, or one patient under two? (signs: mil.cohort.leakage)"""

from mil.cohort.leakage import same_slides
from mil.diagnosis.finding import Details, Finding
from mil.diagnosis.inputs import Inputs
from mil.pages.words import counted

KEY, TITLE, SHARE = "duplicates", "Slides that are there twice", 5


def find(inputs: Inputs) -> Finding:
    cohort = inputs.cohort
    pairs = same_slides(cohort)
    patients, labels = cohort.patient_ids, cohort.labels
    apart = [pair for pair in pairs if patients[pair[0]] != patients[pair[1]]]
    contrary = [pair for pair in pairs if labels[pair[0]] != labels[pair[1]]]
    numbers = {
        "pairs of equal slides": {"value": float(len(pairs)), "low": None, "high": None},
        "of them under different patients": {"value": float(len(apart)), "low": None, "high": None},
        "of them with different labels": {"value": float(len(contrary)), "low": None, "high": None},
    }
    rows = tuple(
        (
            f"{cohort.slide_ids[i]} ({patients[i]}, {cohort.classes[labels[i]]})",
            f"{cohort.slide_ids[j]} ({patients[j]}, {cohort.classes[labels[j]]})",
            sign,
        )
        for (i, j), sign in pairs.items()
    )
    details = [Details("Pairs", ("slide", "is the same as", "sign"), rows)] if rows else []
    if apart:
        i, j = apart[0]
        verdict = (
            f"Slides of two patients are one and the same ({counted(len(apart), 'pair')}), "
            f"{cohort.slide_ids[i]} and {cohort.slide_ids[j]} among them"
        )
        if contrary:
            verdict += f"; with different labels: {counted(len(contrary), 'pair')}"
        return Finding(
            KEY,
            TITLE,
            "fault",
            verdict + ".",
            "Leave one of each pair out, or give both the same patient_id: otherwise a model is tested on slides that "
            "it was trained on, and every accuracy here is too high.",
            numbers,
            details=details,
        )
    if pairs:
        return Finding(
            KEY,
            TITLE,
            "fault" if contrary else "look",
            f"Slides of one patient are one and the same under two ids ({counted(len(pairs), 'pair')})"
            + (f", with different labels: {counted(len(contrary), 'pair')}." if contrary else "; they count twice."),
            "Leave one of each pair out.",
            numbers,
            details=details,
        )
    return Finding(KEY, TITLE, "fine", "No slide is there twice.", "Nothing to do.", numbers)
