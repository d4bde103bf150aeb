"""What cannot be brought about on this machine is not collected."""

from tests.faults.disks import way_into_a_namespace

collect_ignore = [] if way_into_a_namespace() else ["test_tiny_disk.py"]
