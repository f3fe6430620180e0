"""Label photos for a person to correct; the same as `hf-segkd label`.

python scripts/label.py MODEL photos --output_dir FOLDER
"""

from hf_segkd.commands.label import main

if __name__ == "__main__":
    main()
