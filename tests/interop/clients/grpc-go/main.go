// Makes the calls that clients.py requests, with grpc-go. The message types come from a FileDescriptorSet, so no code
// is
// generated.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io/ioutil"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoimpl"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

type config struct {
	Address, Descriptors, ServiceConfig string
	Compress                            bool
}

type request struct {
	ID      int
	Method  string
	Request json.RawMessage
	Timeout float64
}

type end struct {
	Code    string                     `json:"code"`
	Message string                     `json:"message,omitempty"`
	Details map[string]json.RawMessage `json:"details,omitempty"`
}

type line struct {
	ID      int             `json:"id"`
	Message json.RawMessage `json:"message,omitempty"`
	End     *end            `json:"end,omitempty"`
}

var output struct {
	sync.Mutex
	*json.Encoder
}

func write(l line) {
	output.Lock()
	defer output.Unlock()
	must(output.Encode(l))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func endOf(err error) *end {
	failed := status.Convert(err)
	// The specification spells "DeadlineExceeded" DEADLINE_EXCEEDED.
	var code strings.Builder
	for i, c := range failed.Code().String() {
		if i > 0 && c >= 'A' && c <= 'Z' && failed.Code() != 0 {
			code.WriteByte('_')
		}
		code.WriteString(strings.ToUpper(string(c)))
	}
	details := map[string]json.RawMessage{}
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			details["google.rpc.ErrorInfo"] = show(detail)
		case *errdetails.RetryInfo:
			details["google.rpc.RetryInfo"] = show(detail)
		case *errdetails.BadRequest:
			details["google.rpc.BadRequest"] = show(detail)
		}
	}
	return &end{code.String(), failed.Message(), details}
}

// Formats a message as JSON. Debian's package of the error details is generated for version 1 of the protobuf API.
func show(message interface{}) json.RawMessage {
	text, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(protoimpl.X.ProtoMessageV2Of(message))
	must(err)
	return text
}

// Replaces the default codec of Debian's grpc-go, which uses version 1 of the protobuf API and does not support dynamic
// messages.
type codec struct{}

func (codec) Marshal(message interface{}) ([]byte, error) {
	return proto.Marshal(message.(proto.Message))
}

func (codec) Unmarshal(bytes []byte, message interface{}) error {
	return proto.Unmarshal(bytes, message.(proto.Message))
}

func (codec) Name() string { return "proto" }

func call(connection *grpc.ClientConn, method protoreflect.MethodDescriptor, asked request) error {
	in, out := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	must(protojson.Unmarshal(asked.Request, in))
	path := "/" + string(method.Parent().FullName()) + "/" + string(method.Name())
	if !method.IsStreamingServer() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(asked.Timeout*float64(time.Second)))
		defer cancel()
		if err := connection.Invoke(ctx, path, in, out); err != nil {
			return err
		}
		write(line{ID: asked.ID, Message: show(out)})
		return nil
	}
	stream, err := connection.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, path)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(in); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		if err := stream.RecvMsg(out); err != nil {
			return err
		}
		write(line{ID: asked.ID, Message: show(out)})
	}
}

func main() {
	output.Encoder = json.NewEncoder(os.Stdout)
	var config config
	must(json.Unmarshal([]byte(os.Args[1]), &config))
	bytes, err := ioutil.ReadFile(config.Descriptors)
	must(err)
	var set descriptorpb.FileDescriptorSet
	must(proto.Unmarshal(bytes, &set))
	files, err := protodesc.NewFiles(&set)
	must(err)
	methods := map[string]protoreflect.MethodDescriptor{}
	files.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		for i := 0; i < file.Services().Len(); i++ {
			for service, n := file.Services().Get(i), 0; n < service.Methods().Len(); n++ {
				methods[string(service.Methods().Get(n).Name())] = service.Methods().Get(n)
			}
		}
		return true
	})

	options := []grpc.DialOption{grpc.WithInsecure(), grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}))}
	if config.ServiceConfig != "" {
		options = append(options, grpc.WithDefaultServiceConfig(config.ServiceConfig))
	}
	if config.Compress {
		options = append(options, grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
	}
	connection, err := grpc.Dial(config.Address, options...)
	must(err)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var asked request
		must(json.Unmarshal(lines.Bytes(), &asked))
		go func() {
			write(line{ID: asked.ID, End: endOf(call(connection, methods[asked.Method], asked))})
		}()
	}
}
