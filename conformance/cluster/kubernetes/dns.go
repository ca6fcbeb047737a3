package main

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// serveNames answers DNS queries on UDP from a file like /etc/hosts, which is read anew for each,
// so that it may be changed at any time. A name there may begin with "*.". All other names do not
// exist: there is nobody to ask.
func serveNames(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: test-dns ADDRESS:PORT FILE")
	}
	socket, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	query := make([]byte, 1500)
	for {
		n, from, err := socket.ReadFrom(query)
		if err != nil {
			return err
		}
		hosts, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		if answer, err := answer(query[:n], string(hosts)); err == nil {
			_, _ = socket.WriteTo(answer, from)
		}
	}
}

func answer(query []byte, hosts string) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(query)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	reply := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID:                 header.ID,
			Response:           true,
			Authoritative:      true,
			RecursionDesired:   header.RecursionDesired,
			RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{question},
	}
	address := lookUp(strings.TrimSuffix(question.Name.String(), "."), hosts)
	switch {
	case !address.IsValid():
		reply.RCode = dnsmessage.RCodeNameError
	case question.Type == dnsmessage.TypeA:
		reply.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{
				Name:  question.Name,
				Class: dnsmessage.ClassINET,
				TTL:   5,
			},
			Body: &dnsmessage.AResource{A: address.As4()},
		}}
	}
	return reply.Pack()
}

// lookUp returns the first IPv4 address that the lines of hosts have for a name, or none.
func lookUp(name, hosts string) netip.Addr {
	name = strings.ToLower(name)
	for _, line := range strings.Split(hosts, "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		address, err := netip.ParseAddr(fields[0])
		if err != nil || !address.Is4() {
			continue
		}
		for _, known := range fields[1:] {
			suffix, wildcard := strings.CutPrefix(known, "*")
			if name == known || wildcard && strings.HasSuffix(name, suffix) {
				return address
			}
		}
	}
	return netip.Addr{}
}
