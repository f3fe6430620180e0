"""Train a student, with or without a teacher; the same as `hf-segkd pretrain`.

accelerate launch scripts/pretrain.py RECIPES --output_dir FOLDER
"""

from hf_segkd.commands.pretrain import main

if __name__ == "__main__":
    main()
