"""The four kinds that a platform team writes, and how they are read.

`kinds` is the only schema in the project: the folder of YAML and the CRDs both come from it.
`folder` reads files, `catalog` resolves the references, `watch` follows changes. A field appears here when
something reads it, and not before: a limit that is accepted and not enforced is worse than a refusal.
"""
