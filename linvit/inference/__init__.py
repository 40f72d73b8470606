"""Use trained models: a predictor for each task, its metrics, and what it found in words and pictures."""
