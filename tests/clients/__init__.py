"""Libraries that take a model of linvit as any of timm; ``docs/clients.md`` lists them. Run with ``-m slow``."""
