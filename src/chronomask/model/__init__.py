"""Any ``AutoModelForMaskedLM`` of transformers, built, run on masked batches and written out again.

``build`` makes a model from a config or a checkpoint folder; ``attention`` keeps packed documents
apart; ``head`` computes logits at the predicted positions alone; ``export`` writes a folder that
transformers opens. The transformers classes stay as they are. Nothing of training enters here.
"""
