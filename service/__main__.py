"""`python -m service` is `calibrant`."""

from service.cli import main

if __name__ == "__main__":
    main()
