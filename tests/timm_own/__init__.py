"""timm's own tests of models, as timm publishes them, on all models of linvit: ``python -m tests.timm_own``."""
