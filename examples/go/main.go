// An observer and a gateway on plain stubs.
//
//	sessiond-go observe ADDRESS            prints the sessions and every change
//	sessiond-go gateway ADDRESS LISTEN     accepts clients on LISTEN, such as 127.0.0.1:7000
//
// A client of the gateway sends the id of its session as a line and gets the line "connected". Its session exists until
// it disconnects. If its session moves to another gateway or is destroyed, the gateway disconnects it.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	// Versions of Go before 1.20 start with the same random numbers every time.
	rand.Seed(time.Now().UnixNano())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) error {
	if len(arguments) < 2 {
		return errors.New("usage: sessiond-go observe ADDRESS | gateway ADDRESS LISTEN")
	}
	registry, err := connect(arguments[1])
	if err != nil {
		return err
	}
	if arguments[0] == "observe" {
		return observe(ctx, registry)
	}
	return serve(ctx, registry, arguments[2])
}

// serve accepts clients until ctx is done, and then lets them move to other gateways.
func serve(ctx context.Context, registry Registry, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	gateway, err := newGateway(context.Background(), registry, listener.Addr().String())
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	go func() {
		<-ctx.Done()
		listener.Close()
	}()
	for {
		client, err := listener.Accept()
		if err != nil {
			break
		}
		go attend(gateway, client)
	}
	return gateway.stop(context.Background())
}

// attend serves one client until it disconnects or its session ends.
func attend(gateway *Gateway, client net.Conn) {
	defer client.Close()
	lines := bufio.NewReader(client)
	line, err := lines.ReadString('\n')
	if err != nil {
		return
	}
	session, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		return
	}
	connection := gateway.connect(session, func() { client.Close() })
	if connection == nil {
		return
	}
	defer gateway.close(connection)
	fmt.Fprintln(client, "connected")
	for err == nil {
		_, err = lines.ReadString('\n')
	}
}
