"""What tests build: lakes, slides, servers, files of other tools, and work to be killed."""
