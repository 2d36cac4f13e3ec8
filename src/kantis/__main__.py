"""Run Kantis as `python -m kantis`."""

if __name__ == "__main__":  # not in a process that is started to share our work
    from kantis.cli import main

    main()
