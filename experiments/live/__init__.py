"""Live engines: servers, runs, studies and their documents."""
