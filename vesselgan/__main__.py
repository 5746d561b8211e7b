"""python -m vesselgan COMMAND key=value ..."""

from vesselgan.cli.main import main

if __name__ == "__main__":
    main()
