"""Training with teachers: config, distiller, trainer, and what surrounds them."""
