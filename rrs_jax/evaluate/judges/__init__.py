"""Judges: what a response is.

judge.py         labels, the protocol of a judge, and judges that read text alone; phrases.py has its phrases
model_judges.py  judges that ask a model, by a rubric of rubrics.py or by Llama Guard's own prompt
sheet.py         labels by people
registry.py      judges by their names in evaluate.judges
agreement.py     Cohen's kappa of every pair of judges
"""
