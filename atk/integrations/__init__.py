"""Our ops inside other libraries, one module per library; nothing is imported until it is used (docs/integrations.md).

Modules with `install()` rebind the functions of the library that compute its scores or losses. The result is a context
manager, and `uninstall()` puts the originals back.
"""
