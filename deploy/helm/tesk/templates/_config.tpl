{{/* A value as TOML. Strings, numbers and booleans are written as in JSON. */}}
{{- define "tesk.toml.value" -}}
{{- if kindIs "map" . -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $pairs = append $pairs (printf "%s = %s" (toRawJson $key) (include "tesk.toml.value" $value)) -}}
{{- end -}}
{{- end -}}
{ {{ join ", " $pairs }} }
{{- else if kindIs "slice" . -}}
{{- $values := list -}}
{{- range . -}}
{{- $values = append $values (include "tesk.toml.value" .) -}}
{{- end -}}
[{{ join ", " $values }}]
{{- else -}}
{{ toRawJson . }}
{{- end -}}
{{- end -}}

{{/* The keys of a table, a line each; those that are null are left out. */}}
{{- define "tesk.toml.table" -}}
{{- range $key, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "tesk.toml.value" $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* tesk.toml: what `config` and `storage` say, and what follows from the other values. */}}
{{- define "tesk.config" -}}
{{- $root := . -}}
{{- $server := merge (deepCopy .Values.config.server) (dict "listen" "0.0.0.0:8080" "engine" "kubernetes" "context_path" .Values.contextPath) -}}
{{- $auth := dict -}}
{{- if .Values.auth.open -}}
{{- $_ := set $server "allow_open" true -}}
{{- else -}}
{{- $_ := set $auth "users" "/etc/tesk-users/users.toml" -}}
{{- end -}}
{{- $kubernetes := merge (deepCopy .Values.config.kubernetes) (dict
      "instance" (include "tesk.instance" .)
      "filer_image" (include "tesk.image" (list .Values.filerImage .Chart.AppVersion))
      "image_pull_secrets" .Values.imagePullSecrets) -}}
{{- with .Values.scratch.storageClass -}}
{{- $_ := set $kubernetes "scratch_class" . -}}
{{- end -}}
{{- $mounts := $kubernetes.mounts | default list -}}
{{- range .Values.storageSecrets -}}
{{- $mounts = append $mounts (dict "path" (printf "/etc/tesk-storage/%s" .name) "secret" (include "tesk.storageSecret" (list . $root))) -}}
{{- end -}}
{{- $ca := include "tesk.caConfigMap" . -}}
{{- with $ca -}}
{{- $mounts = append $mounts (dict "path" "/etc/tesk-ca" "config_map" .) -}}
{{- end -}}
{{- with $mounts -}}
{{- $_ := set $kubernetes "mounts" . -}}
{{- end -}}
{{- $proxy := .Values.proxy -}}
{{- if and $proxy.url $proxy.executors -}}
{{- $patch := $kubernetes.patch | default dict -}}
{{- $executor := $patch.executor | default dict -}}
{{- $env := $executor.env | default list -}}
{{- range list "HTTP_PROXY" "HTTPS_PROXY" "http_proxy" "https_proxy" -}}
{{- $env = append $env (dict "name" . "value" $proxy.url) -}}
{{- end -}}
{{- range list "NO_PROXY" "no_proxy" -}}
{{- $env = append $env (dict "name" . "value" $proxy.noProxy) -}}
{{- end -}}
{{- $_ := set $executor "env" $env -}}
{{- $_ := set $patch "executor" $executor -}}
{{- $_ := set $kubernetes "patch" $patch -}}
{{- end -}}
[server]
{{- include "tesk.toml.table" $server }}

[auth]
{{- include "tesk.toml.table" $auth }}

[service_info]
{{- include "tesk.toml.table" .Values.config.service_info }}

[limits]
{{- include "tesk.toml.table" .Values.config.limits }}

[kubernetes]
{{- include "tesk.toml.table" $kubernetes }}

[transfer]
{{- include "tesk.toml.table" .Values.config.transfer }}
{{- range .Values.storage }}
{{- $storage := deepCopy . }}
{{- if and $ca (ne .type "pvc") (not (hasKey . "ca_file")) }}
{{- $_ := set $storage "ca_file" "/etc/tesk-ca/ca.crt" }}
{{- end }}
{{- if and $proxy.url (has .type (list "http" "s3")) (not (hasKey . "proxy")) }}
{{- $_ := set $storage "proxy" $proxy.url }}
{{- end }}

[[storage]]
{{- include "tesk.toml.table" $storage }}
{{- end }}
{{- end -}}
