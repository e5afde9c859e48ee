"""What every room stands on: errors, units, durable files, YAML files, hub access.

Read `errors` first, then `durable` and `shipped`. The other files are independent of each other.
"""
