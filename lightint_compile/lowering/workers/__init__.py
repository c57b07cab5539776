"""Regions compiled in other processes, beside those that this one compiles.

A worker (:mod:`.worker`) runs the code that this process would run, on the same graph and under the same settings, and
gives back what is kept on disk of a compiled region. Where it fails, and where it cannot be given the same, the region
is compiled here.

That Inductor's caches are filled and found again would be simpler. But their keys tell processes apart that have
imported modules in another order: ``pickle`` names ``torch.contiguous_format`` by the first module that has ``torch``.

* :mod:`.asked`: whether workers are worth it, and how many;
* :mod:`.pool`: the processes, started ahead of lowering and let go with it;
* :mod:`.parcels`: a region, and what its compilation depends on, as bytes;
* :mod:`.switches`: the settings among these, and :mod:`.rules` what Inductor was told of operators;
* :mod:`.sharing`: who compiles which region.
"""
