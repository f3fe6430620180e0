"""What a run leaves for people: tables, figures, pictures, model cards."""
