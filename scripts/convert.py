"""Turn an original checkpoint into a model folder; the same as `hf-segkd convert`.

python scripts/convert.py CHECKPOINT FOLDER
"""

from hf_segkd.commands.convert import main

if __name__ == "__main__":
    main()
