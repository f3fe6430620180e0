"""Upload a finished run to the Hub; the same as `hf-segkd push`.

python scripts/push.py FOLDER OWNER/NAME
"""

from hf_segkd.commands.push import main

if __name__ == "__main__":
    main()
