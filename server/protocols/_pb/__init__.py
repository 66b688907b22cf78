"""The protobuf messages of the protocols, in a descriptor pool of our own.  The other files are generated (scripts/generate).

The default pool takes a name once per process, so a model's code that imports `tritonclient` or TensorFlow next to a server
whose messages lived there would fail, or the server would.  Nothing but descriptors and message classes belongs here.
"""

from typing import Any

from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from server.protocols._pb import open_inference, tensorflow, tensorflow_serving

POOL = DescriptorPool()
for _known in (any_pb2, wrappers_pb2):
    POOL.AddSerializedFile(_known.DESCRIPTOR.serialized_pb)
for _made in (open_inference, tensorflow, tensorflow_serving):
    for _file in FileDescriptorSet.FromString(_made.DESCRIPTOR_SET).file:
        POOL.AddSerializedFile(_file.SerializeToString())


def message(name: str, package: str = "inference") -> Any:
    """The class of a message."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"{package}.{name}"))


def methods(service: str) -> dict[str, tuple[Any, Any]]:
    """Of a service, method name → (request class, response class)."""
    found = POOL.FindServiceByName(service).methods
    return {m.name: (GetMessageClass(m.input_type), GetMessageClass(m.output_type)) for m in found}


SERVICE = "inference.GRPCInferenceService"
METHODS = methods(SERVICE)
