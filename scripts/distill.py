"""Train a student, with or without a teacher; the same as `hf-segkd distill`.

accelerate launch scripts/distill.py RECIPES --output_dir FOLDER
"""

from hf_segkd.commands.distill import main

if __name__ == "__main__":
    main()
