"""How repeated regions are found, cut out and put back as submodules that are called many times."""
