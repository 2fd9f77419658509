"""What is written from the ledger: tables, figures, notebook sections, model cards, pages, and their check."""
