"""What tests share: configs, networks, runs, faults and real data."""
