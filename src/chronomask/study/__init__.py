"""Studies: arms that differ in declared fields, run over seeds and compared with intervals."""
