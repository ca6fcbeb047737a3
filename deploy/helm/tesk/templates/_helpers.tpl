{{- define "tesk.fullname" -}}
{{- $name := .Release.Name -}}
{{- if .Values.fullnameOverride -}}
{{- $name = .Values.fullnameOverride -}}
{{- else if not (contains .Chart.Name $name) -}}
{{- $name = printf "%s-%s" $name .Chart.Name -}}
{{- end -}}
{{- $name = $name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]" $name) -}}
{{- fail (printf "%s: no Service can have this name, as it begins with a digit: set fullnameOverride" $name) -}}
{{- end -}}
{{ $name }}
{{- end -}}

{{/* What selects the server's pods. It never changes, as selectors cannot. */}}
{{- define "tesk.selector" -}}
app.kubernetes.io/name: tesk
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "tesk.labels" -}}
app.kubernetes.io/name: tesk
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "tesk.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "tesk.fullname" .) }}
{{- end -}}

{{/* What tells the objects of this engine from those of another in the namespace. */}}
{{- define "tesk.instance" -}}
{{ .Values.config.kubernetes.instance | default (include "tesk.fullname" .) }}
{{- end -}}

{{/* image <the values of an image>, <the chart's version> */}}
{{- define "tesk.image" -}}
{{- $image := index . 0 -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}:{{ $image.tag | default (index . 1) }}
{{- end -}}

{{- define "tesk.usersSecret" -}}
{{ .Values.auth.existingSecret | default (printf "%s-users" (include "tesk.fullname" .)) }}
{{- end -}}

{{- define "tesk.caConfigMap" -}}
{{- if .Values.caCertificates.existingConfigMap -}}
{{ .Values.caCertificates.existingConfigMap }}
{{- else if .Values.caCertificates.pem -}}
{{ include "tesk.fullname" . }}-ca
{{- end -}}
{{- end -}}

{{/* storageSecret <values>, <root>: the name of the Secret */}}
{{- define "tesk.storageSecret" -}}
{{- $secret := index . 0 -}}
{{ $secret.existingSecret | default (printf "%s-storage-%s" (include "tesk.fullname" (index . 1)) $secret.name) }}
{{- end -}}

{{/* What satisfies the Pod Security Standard `restricted`, of a pod and of a container. */}}
{{- define "tesk.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ . | int64 }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "tesk.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
