"""From logits to label maps and scores."""
