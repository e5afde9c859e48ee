"""Compare speed and scores with the tools that people use today; see README.md beside this file."""
