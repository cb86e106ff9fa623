"""Training: recipes, mL1-ACE losses, evaluation, and the export of bundles that `service` serves."""
