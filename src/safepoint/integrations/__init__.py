"""What serves training frameworks. Nothing outside this package and the public adapter modules imports one."""
