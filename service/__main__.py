"""`python -m service` is `calibrant`."""

from service.commands.cli import main

if __name__ == "__main__":
    main()
