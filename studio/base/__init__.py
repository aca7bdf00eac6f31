"""What every floor above stands on: errors, progress, child processes, units, resources."""
