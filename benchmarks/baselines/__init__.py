"""Where the records of the benchmarks come from, and the search for the settings of the package's baselines."""
