"""The messages of the Open Inference Protocol over gRPC, and of gRPC's health check.

Built from a table of field numbers, as the public protocols give them. Fields that a server need
not read (parameters, above all) are left out: protobuf skips what it does not know.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"

# A field is its type, its name and its number; "*" behind the type: repeated.
_INFERENCE = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name 1, string version 2, string* extensions 3",
    "ModelReadyRequest": "string name 1, string version 2",
    "ModelReadyResponse": "bool ready 1",
    "ModelMetadataRequest": "string name 1, string version 2",
    "ModelMetadataResponse": "string name 1, string* versions 2, string platform 3,"
    " TensorMetadata* inputs 4, TensorMetadata* outputs 5",
    "TensorMetadata": "string name 1, string datatype 2, int64* shape 3",
    "ModelInferRequest": "string model_name 1, string model_version 2, string id 3,"
    " InferInputTensor* inputs 5, InferRequestedOutputTensor* outputs 6,"
    " bytes* raw_input_contents 7",
    "InferInputTensor": "string name 1, string datatype 2, int64* shape 3,"
    " InferTensorContents contents 5",
    "InferRequestedOutputTensor": "string name 1",
    "InferTensorContents": "bool* bool_contents 1, int32* int_contents 2, int64* int64_contents 3,"
    " uint32* uint_contents 4, uint64* uint64_contents 5, float* fp32_contents 6,"
    " double* fp64_contents 7, bytes* bytes_contents 8",
    "ModelInferResponse": "string model_name 1, string model_version 2, string id 3,"
    " InferOutputTensor* outputs 5, bytes* raw_output_contents 6",
    "InferOutputTensor": "string name 1, string datatype 2, int64* shape 3,"
    " InferTensorContents contents 5",
    "RepositoryIndexRequest": "bool ready 2",
    "RepositoryIndexResponse": "ModelIndex* models 1",
    "ModelIndex": "string name 1, string version 2, string state 3, string reason 4",
    "RepositoryModelLoadRequest": "string model_name 2",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "string model_name 2",
    "RepositoryModelUnloadResponse": "",
}
_HEALTH = {
    "HealthCheckRequest": "string service 1",
    # ServingStatus on the wire: 1 serving, 2 not serving, 3 no such service.
    "HealthCheckResponse": "int32 status 1",
}
SERVING, NOT_SERVING = 1, 2

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
}


def _classes(package: str, messages: dict[str, str]) -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name=f"driftd/{package}.proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field in filter(None, fields.split(", ")):
            kind, field_name, number = field.split()
            repeated = kind.endswith("*")
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            added = message.field.add(name=field_name, number=int(number), label=label)
            if kind in _TYPES:
                added.type = _TYPES[kind]
            else:
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"
    # A pool of its own: a program may hold other definitions of the same protocol.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in messages
    }


MESSAGES: dict[str, Any] = {
    **_classes("inference", _INFERENCE),
    **_classes("grpc.health.v1", _HEALTH),
}
