"""Measure what models cost; the same as `hf-segkd profile`.

python scripts/profile_model.py MODEL
"""

from hf_segkd.commands.profile import main

if __name__ == "__main__":
    main()
