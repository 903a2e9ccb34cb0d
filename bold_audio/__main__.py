"""``python -m bold_audio``: the command line of whichever Python this is."""

import sys

# jsonschema, which checks notebooks, would build a grammar of international addresses: a second, for nothing here.
sys.modules.setdefault("rfc3987_syntax", None)

from bold_audio.run import main  # noqa: E402

if __name__ == "__main__":
    main()
