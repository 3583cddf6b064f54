"""What several tests share: small data, small networks and runs, stand-ins, comparisons."""
