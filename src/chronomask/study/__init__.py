"""Studies: arms that differ in declared fields, run over seeds and compared with intervals."""

STUDY_FILE = "study.yaml"
"""In a study's folder: the study itself, with every default written out."""
