"""Speed and agreement against what people use today; see README.md beside this file."""
