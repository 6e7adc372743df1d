module fedmtl-go

go 1.19

require (
	google.golang.org/genproto/googleapis/rpc v0.0.0-20240701130421-f6361c86f094
	google.golang.org/grpc v1.64.1
	google.golang.org/protobuf v1.34.2
)
