"""What distillation is worth on CamVid: a queue of runs, and the tables made from what it wrote."""
