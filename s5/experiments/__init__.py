"""Many trainings: variants, claims, trials, the ledger, sweep, compare, search, distillation."""
