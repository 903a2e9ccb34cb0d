"""``python -m bold_audio``: the command line of whichever Python this is."""

from bold_audio.run import main

if __name__ == "__main__":
    main()
