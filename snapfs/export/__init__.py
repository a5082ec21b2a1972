"""A snapshot over NBD, for tools that read nothing else: by nbdkit, or with a dirty bitmap by qemu-nbd."""
